"""The chunk store: a directory of encrypted chunks that sealed files share, and what in it nobody refers to."""
