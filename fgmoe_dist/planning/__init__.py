"""What a configuration costs on a machine that is not at hand: memory, traffic, time, the best `parallel.ep_size`.

    machine     what was measured of a machine, and what it predicts for one operation
    trace       what one micro-batch computes and keeps, counted on tensors without data
    memory, kept, traffic, times    of one rank, arithmetic alone
    search      the layouts that are possible, and the best
    measure_*, bench_*        the figures behind it, and how far predictions are off

All but `trace`, `measure_*` and `bench_*` are plain arithmetic and import no torch.
"""
