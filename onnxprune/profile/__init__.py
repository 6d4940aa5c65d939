"""What a model computes and costs: sessions, taps, statistics, MACs, latency."""
