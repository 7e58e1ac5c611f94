"""What a run tells when it is over: charts, contact sheet, page."""
