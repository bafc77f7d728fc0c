"""Boundary detection scored as by the SEISM toolbox, without MATLAB.

Suppression of non-maxima (`nms`), 101 thresholds, thinning (`thinning`), one-to-one matching with the truth
(`matching`), counts of one image (`counts`), summaries (`curve`) and the mergeable meter (`meter`).
"""
