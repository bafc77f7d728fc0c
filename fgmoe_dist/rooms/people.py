"""People and pets: bodies built on a skeleton, every triangle named by its body part.

Part names are PASCAL-Part's ("l" and "r" are the person's own left and right). A person looks along -y. Metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fgmoe_dist.rooms.furniture import Thing
from fgmoe_dist.rooms.geometry import Solid, frame, rotation

_DOWN = np.array([0.0, 0.0, -1.0])


def person(rng: np.random.Generator, pose: str) -> Thing:
    """A person standing, walking, reaching or sitting (`pose`).

    The origin is on the floor below the hips, or for a sitter at the middle of the seat's surface.
    """
    body = _Body(rng, pose)
    body.legs()
    body.torso()
    body.arms()
    body.head()
    return Thing("person", body.solid.triangles())


class _Body:
    """Proportions, a pose, and the parts drawn on them, from the hips outwards."""

    def __init__(self, rng: np.random.Generator, pose: str):
        self.rng, self.pose, self.solid = rng, pose, Solid()
        self.tall = rng.uniform(1.5, 1.92)
        self.stout = rng.uniform(0.85, 1.25)
        self.thigh, self.shin = 0.245 * self.tall, 0.245 * self.tall
        seated = pose == "sit"
        self.hip = np.array([0, 0.1, 0.09 * self.stout]) if seated else np.array([0, 0, 0.53 * self.tall])
        self.lean = rotation("x", rng.uniform(-0.1, 0.25) if seated else rng.uniform(-0.05, 0.15))
        self.sleeve, self.trouser = rng.choice(("long", "short", "none")), rng.choice(("long", "long", "short"))

    def _limb(
        self,
        start: ArrayLike,
        swing_x: float,
        swing_y: float,
        length: float,
        radii: Sequence[float],
        slot: str,
        part: str,
    ) -> np.ndarray:
        """A tube hanging from `start`, swung forward by swing_x and sideways by swing_y; returns its end."""
        direction = rotation("y", swing_y) @ rotation("x", -swing_x) @ _DOWN
        end = start + length * direction
        self.solid.tube(start, end, radii[0] * self.stout, slot, part, end_radius=radii[1] * self.stout, sides=10)
        return end

    def legs(self) -> None:
        rng, tall = self.rng, self.tall
        stride = rng.uniform(0.25, 0.55) if self.pose == "walk" else rng.uniform(0, 0.1)
        for name, side in (("l", 1), ("r", -1)):
            hip = self.hip + (side * 0.052 * tall, 0, 0)
            spread = -side * rng.uniform(0.02, 0.12)
            if self.pose == "sit":
                thigh, shin = np.pi / 2 - rng.uniform(0, 0.1), rng.uniform(-0.25, 0.3)
            else:
                thigh = side * stride
                shin = thigh - (rng.uniform(0.2, 0.7) * stride / 0.4 if side < 0 else 0.05)
            bare = "skin" if self.trouser == "short" else "trousers"
            knee = self._limb(hip, thigh, spread, self.thigh, (0.052 * tall, 0.034 * tall), "trousers", f"{name}uleg")
            ankle = self._limb(knee, shin, spread / 3, self.shin, (0.033 * tall, 0.022 * tall), bare, f"{name}lleg")
            toe = rotation("z", side * rng.uniform(0, 0.4)) @ (0, -0.075 * tall, -0.012 * tall)
            heel = ankle - (0, 0, 0.012 * tall)
            self.solid.tube(heel, heel + toe, 0.027 * tall, "shoes", f"{name}foot", end_radius=0.02 * tall)
        if self.pose != "sit":  # the lower foot stands on the floor
            low = min(piece[0][..., 2].min() for piece in self.solid.pieces)
            for piece in self.solid.pieces:
                piece[0][..., 2] -= low
            self.hip = self.hip - (0, 0, low)

    def torso(self) -> None:
        tall, wide = self.tall, self.stout * self.tall
        profile = [
            (0.02, -0.055 * tall),
            (0.088 * wide, -0.03 * tall),
            (0.094 * wide, 0.02 * tall),
            (0.08 * wide, 0.1 * tall),
            (0.096 * wide, 0.2 * tall),
            (0.104 * wide, 0.255 * tall),
            (0.075 * wide, 0.295 * tall),
            (0.03 * wide, 0.31 * tall),
        ]
        squash = (1.0, 0.64)
        self.solid.lathe(profile, "shirt", "torso", at=self.hip, squash=squash, turn=self.lean, sides=18)
        hips = [(0.03, -0.075 * tall), (0.09 * wide, -0.045 * tall), (0.1 * wide, 0.0), (0.096 * wide, 0.035 * tall)]
        self.solid.lathe(hips, "trousers", "torso", at=self.hip, squash=(1.0, 0.68), sides=18)
        base = self.hip + self.lean @ (0, 0, 0.3 * tall)
        self.chin = base + self.lean @ (0, -0.008, 0.05 * tall)
        self.solid.tube(base, self.chin, 0.034 * tall, "skin", "neck", sides=10)

    def arms(self) -> None:
        rng, tall = self.rng, self.tall
        slots = {"long": ("shirt", "shirt"), "short": ("shirt", "skin"), "none": ("skin", "skin")}[self.sleeve]
        for name, side in (("l", 1), ("r", -1)):
            start = self.hip + self.lean @ (side * 0.098 * tall * self.stout, 0, 0.27 * tall)
            reach = rng.random()
            if self.pose == "reach" and (side > 0 or reach < 0.4):
                lift, out, bend = rng.uniform(1.0, 2.9), rng.uniform(0.0, 0.5), rng.uniform(0.0, 0.6)
            elif self.pose == "walk":
                lift, out, bend = -side * rng.uniform(0.2, 0.5), 0.12, rng.uniform(0.2, 0.7)
            elif self.pose == "sit":
                lift, out, bend = rng.uniform(0.25, 0.6), rng.uniform(0.1, 0.3), rng.uniform(0.6, 1.1)
            elif reach < 0.3:  # a hand on the hip, or near it
                lift, out, bend = rng.uniform(-0.5, -0.2), rng.uniform(0.5, 0.8), rng.uniform(0.9, 1.4)
            else:
                lift, out, bend = rng.uniform(-0.1, 0.3), rng.uniform(0.05, 0.25), rng.uniform(0.05, 0.9)
            radii = (0.032 * tall, 0.025 * tall)
            elbow = self._limb(start, lift, -side * out, 0.165 * tall, radii, slots[0], f"{name}uarm")
            inward = side * (0.35 * min(bend, 1) - out * 0.5)
            wrist = self._limb(
                elbow, lift + bend, inward, 0.145 * tall, (0.025 * tall, 0.017 * tall), slots[1], f"{name}larm"
            )
            along = (wrist - elbow) / np.linalg.norm(wrist - elbow)
            size = np.array((0.018, 0.012, 0.045)) * tall
            self.solid.ball(wrist + along * 0.04 * tall, size, "skin", f"{name}hand", turn=frame(along), sides=8)

    def head(self) -> None:
        rng, size, solid = self.rng, self.tall * 0.066, self.solid
        turn = self.lean @ rotation("z", rng.normal(0, 0.35)) @ rotation("x", rng.uniform(-0.1, 0.2))
        centre = self.chin + turn @ np.array([0, -0.1 * size, 1.05 * size])

        def at(x: float, y: float, z: float) -> np.ndarray:
            return centre + turn @ np.array([x, y, z]) * size

        def ball(place: tuple[float, float, float], radii: Sequence[float], slot: str, part: str) -> None:
            solid.ball(at(*place), np.array(radii) * size, slot, part, turn=turn, sides=8)

        solid.ball(centre, np.array((0.8, 0.92, 1.2)) * size, "skin", "head", turn=turn, sides=16)
        solid.ball(at(0, 0.16, 0.25), np.array((0.9, 0.95, 1.05)) * size, "hair", "hair", turn=turn, sides=14)
        if rng.random() < 0.4:
            ball((0, 0.62, -0.5), (0.72, 0.42, 1.1), "hair", "hair")
        for name, side in (("l", 1), ("r", -1)):
            ball((side * 0.33, -0.8, 0.1), (0.15, 0.09, 0.1), "eyes", f"{name}eye")
            ball((side * 0.34, -0.78, 0.32), (0.22, 0.08, 0.05), "hair", f"{name}ebrow")
            ball((side * 0.82, 0.02, 0.02), (0.1, 0.18, 0.28), "skin", f"{name}ear")
        ball((0, -0.95, -0.14), (0.13, 0.17, 0.24), "skin", "nose")
        ball((0, -0.76, -0.55), (0.3, 0.12, 0.08), "lips", "mouth")


def pet(rng: np.random.Generator, kind: str) -> Thing:
    """A cat or a dog, standing or sitting, looking along -y."""
    solid = Solid()
    size = rng.uniform(0.23, 0.3) if kind == "cat" else rng.uniform(0.4, 0.65)
    long, thick = size * rng.uniform(0.85, 1.1), size * rng.uniform(0.22, 0.28)
    sits = rng.random() < 0.4
    chest = np.array([0, -long * (0.3 if sits else 0.5), size * 0.75])
    rump = np.array([0, long * 0.3, size * 0.3]) if sits else np.array([0, long * 0.5, size * 0.72])
    solid.tube(chest, rump, thick, "fur", end_radius=thick * 1.05, sides=12)
    for x in (-1, 1):
        front = chest + (x * thick * 0.55, -0.02, -thick * 0.3)
        rear = rump + (x * thick * 0.75, 0, -thick * 0.2)
        solid.tube(front, (front[0], front[1], 0.035), thick * 0.32, "fur", end_radius=0.03)
        knee = (rear[0], rear[1] + (-0.3 if sits else 0.0) * long, 0.035)
        solid.tube(rear, knee, thick * 0.42, "fur", end_radius=0.03)
    nape = chest + (0, -long * 0.2, size * rng.uniform(0.25, 0.4))
    solid.tube(chest, nape, thick * 0.7, "fur", end_radius=thick * 0.55, sides=10)
    skull = size * (0.21 if kind == "cat" else 0.17)
    head = nape + (0, -skull * 0.6, skull * 0.4)
    solid.ball(head, (skull, skull, skull * 0.92), "fur")
    muzzle = 0.75 if kind == "cat" else 1.35
    solid.tube(head, head + (0, -skull * muzzle, -skull * 0.3), skull * 0.6, "fur", end_radius=skull * 0.36)
    solid.ball(head + (0, -skull * (muzzle + 0.3), -skull * 0.22), (skull * 0.18,) * 3, "nose", sides=6)
    for x in (-1, 1):
        solid.ball(head + (x * skull * 0.42, -skull * 0.82, skull * 0.25), (skull * 0.14,) * 3, "nose", sides=6)
        if kind == "cat":
            ear = [(skull * 0.34, 0), (1e-3, skull * 0.7)]
            solid.lathe(ear, "fur", at=head + (x * skull * 0.55, 0, skull * 0.65), sides=6)
        else:
            place = head + (x * skull * 0.95, skull * 0.1, -skull * 0.1)
            solid.ball(place, (skull * 0.18, skull * 0.4, skull * 0.75), "ears", sides=8)
    tip = rump + (rng.uniform(-0.2, 0.2) * long, long * rng.uniform(0.25, 0.5), size * rng.uniform(-0.1, 0.6))
    solid.tube(rump + (0, thick * 0.8, 0), tip, thick * 0.24, "fur", end_radius=thick * 0.14, sides=6)
    shape = solid.triangles()
    shape.vertex_T33[..., 2] -= shape.vertex_T33[..., 2].min()
    return Thing(kind, shape)
