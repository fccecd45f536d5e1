"""For authors: build releases, try the corpus, mutate the reference."""
