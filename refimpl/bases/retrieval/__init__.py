"""Vector search: vectors in few bytes (`lvq`), under a metric (`metric`), found by comparing all
(`scan`) or by walking a graph (`vamana`)."""
