"""What `vidpipe study` compares and how: settings, statistics, and the recommendation. No torch."""
