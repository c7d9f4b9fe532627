def serve(tally, count, seed, work): pass
