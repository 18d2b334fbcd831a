"""What images and objects of a checkpoint say, as tables: pages, chunks, tasks, archives.  No key is used here."""
