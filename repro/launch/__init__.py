"""Runs in several processes: ranks, hosts, parallel cells, Slurm."""
