"""What a run leaves on disk: written by `engine/`, read by `report/`."""
