"""From data files to tokens on disk: sources, formats, chat (tokens and mask), prepare, show."""
