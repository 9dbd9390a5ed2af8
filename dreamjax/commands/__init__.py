"""What the command line's commands do, one module each: they bring together what the rooms below do not know of."""
