"""Vector search: vectors stored in few bytes (`lvq`), and a graph that finds near ones (`vamana`)."""
