"""Rules and traces in words. Decides nothing: what a packet does is the walker's answer (`ktp.dataplane`)."""
