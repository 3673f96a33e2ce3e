"""Images: the sets that a network is trained on and judged against."""
