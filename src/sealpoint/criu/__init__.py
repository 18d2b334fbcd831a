"""What CRIU speaks: images, the streaming protocol, its command line.  Knows nothing of encryption."""
