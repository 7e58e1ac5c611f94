"""What several pages share: the frame around each, the bin, drop zones, job heads."""
