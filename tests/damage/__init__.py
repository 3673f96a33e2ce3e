"""The damage campaign: every file that a finished run leaves is damaged in every way, and the next command must notice."""
