"""Where trials run: inside a Tune actor or on Ray Train workers. Ray is imported from here on."""
