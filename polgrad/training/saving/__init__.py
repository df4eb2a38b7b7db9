"""What a run leaves on disk, and how damage to it is found."""
