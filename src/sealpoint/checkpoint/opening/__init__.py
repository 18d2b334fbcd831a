"""From a sealed file to what is in it: who is believed, parents, keys, pages beside it, chunks of a store."""
