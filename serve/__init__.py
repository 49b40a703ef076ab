"""The best checkpoints as autoscaling endpoints: the Ray Serve application."""
