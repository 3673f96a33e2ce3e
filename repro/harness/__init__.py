"""Everything that a reproduction needs and no method owns. Importing the package itself imports nothing heavy."""
