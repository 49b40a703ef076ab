"""Tasks: what is predicted. Labels, loss, metrics and decoding, shared by training and serving."""
