"""What a configuration costs on a machine that is not at hand: memory, traffic, time, the best `parallel.ep_size`.

    profile     what was measured of a machine, and what it predicts for one operation
    placement   how ranks lie on nodes
    trace       what one micro-batch computes and keeps, counted on tensors without data
    memory, kept, traffic, times    what one rank needs, by arithmetic alone
    search      the placements that are possible, and the best
    dry_run     what a run amounts to, and one step of it that proves it works

All but `trace` and `dry_run` are plain arithmetic and import no torch. `fgmoe_dist/benches/` takes the profile, and
measures how far the predictions are off.
"""
