"""Rooms: the built-in data set, procedural indoor scenes with exact labels in the folder layouts of the archives.

A scene is furnished (`programs`, from `furniture` and `people`), painted (`textures`), lit (`scene`), looked at
(`camera`), photographed (`render`, on Embree through `tracer`) and written (`write`).
Normals are in camera space: x right, y up, z towards the viewer.
"""

from fgmoe_dist.rooms.write import LAYOUTS, render, write_rooms

__all__ = ["LAYOUTS", "render", "write_rooms"]
