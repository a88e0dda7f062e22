"""Findings of a run that never was: shaped like the real one, from one seed."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np

from server.demo.findings import (
    ArmResult,
    CalibrationBin,
    Check,
    Consistency,
    DayPoint,
    Findings,
    GovernanceEvent,
    IncidentView,
    LatencySeries,
    ModelScore,
    MovedFeature,
    SkewView,
    Slice,
    Throughput,
    Timing,
)

FIRST, CANARY, LAST = date(2013, 10, 1), date(2013, 11, 1), date(2013, 12, 31)


def days(rng: np.random.Generator) -> list[DayPoint]:
    points = []
    for n in range((LAST - FIRST).days + 1):
        day = FIRST + timedelta(days=n)
        rows = int(rng.integers(720, 990))
        storm = 0.3 if date(2013, 12, 5) <= day <= date(2013, 12, 10) else 0.0
        season = 0.1 if day.month == 12 else 0.0
        late = float(np.clip(0.16 + season + storm + rng.normal(0, 0.06), 0.03, 0.7))
        on = day >= CANARY
        points.append(
            DayPoint(
                day,
                rows,
                0.6 * late + 0.07,
                late,
                int(rng.binomial(rows, 0.1)) if on else 0,
                0.1 if on else None,
            )
        )
    return points


def arm(
    name: str, title: str, role: str, rows: int, auc: float, rng: np.random.Generator
) -> ArmResult:
    bins = [
        CalibrationBin(p, float(np.clip(p + rng.normal(0.02, 0.02), 0, 1)), int(rows * w))
        for p, w in zip(
            (0.05, 0.1, 0.15, 0.2, 0.27, 0.35, 0.45, 0.55, 0.66, 0.8),
            (0.2, 0.18, 0.15, 0.12, 0.1, 0.08, 0.06, 0.05, 0.04, 0.02),
            strict=True,
        )
    ]
    start = FIRST if role == "live" else CANARY
    weekly = [
        (start + timedelta(days=7 * w), auc + float(rng.normal(0, 0.012)))
        for w in range(((LAST - start).days + 1) // 7)
    ]
    return ArmResult(
        name, title, "sha256:" + "3f9c" * 16, role, rows, auc, auc, rows, 0.21, 0.226, bins, weekly
    )


CHECKS = (
    (
        "History is worth it",
        "model",
        "AUC at least 0.06 above the logistic regression without history",
        "0.761 against 0.683: 0.078 above",
    ),
    (
        "The program is the model",
        "model",
        "ONNX equals LightGBM: no label flips, |Δ| ≤ 1e-5",
        "0 flips, largest |Δ| 9.5e-08",
    ),
    (
        "Bit for bit",
        "consistency",
        "100 % of logged feature rows equal the offline rows",
        "84,312 of 84,312",
    ),
    (
        "Same quality online",
        "consistency",
        "per arm |AUC online − offline| ≤ 1e-6",
        "champion 0, challenger 0",
    ),
    (
        "Nothing lost",
        "consistency",
        "one log row per answer, one truth per landing",
        "84,312 rows, 84,312 truths",
    ),
    (
        "The split is the plan",
        "traffic",
        "each share within 4 sd of the plan",
        "challenger 5,512 of 55,290, planned 10.0 %: −0.24 sd",
    ),
    (
        "Quiet weeks stay quiet",
        "drift",
        "at most 0 incidents in October and November",
        "0 incidents",
    ),
    (
        "December is noticed",
        "drift",
        "an incident by 15 December that names what moved",
        "9 Dec, prediction mean and calibration; weather:visibility",
    ),
    ("Four eyes", "governance", "an author cannot approve", "refused: permission_denied"),
    (
        "One answer again",
        "consistency",
        "headrace replay gives the logged bits",
        "0.31772953, same bits",
    ),
    ("Standard clients work", "speed", "tritonclient grpc and http infer", "both 0.317730"),
)


def findings(*, failing: bool = False, keep: bool = False) -> Findings:
    rng = np.random.default_rng(7)
    checks = [
        Check.of(n, s, wanted=w, measured=m, holds=not (failing and n == "Bit for bit"))
        for n, s, w, m in CHECKS
    ]
    latency = (rng.lognormal(0.35, 0.3, 32_000) * 1e6).astype(np.int64)
    return Findings(
        title="Headrace: first light",
        period=(FIRST, LAST),
        tested=(FIRST, LAST),
        canary_from=CANARY,
        canary_early=False,
        model="flight_delay",
        machine="2 cores, x86-64",
        versions="headrace 0.1.0, Python 3.11.2, onnxruntime 1.23.0",
        data_dir="demo-data",
        alarm_budget="at most one false incident in 90 quiet days.",
        scores=[
            ModelScore("LightGBM with history", 0.7612, 0.7571, 0.7653, 0.4321, False),
            ModelScore("LightGBM without history", 0.7011, 0.6963, 0.7059, 0.4711, True),
            ModelScore("Logistic regression without history", 0.6834, 0.6786, 0.6882, 0.4825, True),
        ],
        slices=[
            Slice("origin", o, float(rng.uniform(0.72, 0.79)), int(rng.integers(20000, 30000)))
            for o in ("EWR", "JFK", "LGA")
        ]
        + [
            Slice("carrier", c, float(rng.uniform(0.68, 0.80)), int(rng.integers(800, 14000)))
            for c in (
                "United",
                "JetBlue",
                "ExpressJet",
                "Delta",
                "American",
                "Envoy",
                "US Airways",
                "Endeavor",
                "Southwest",
                "Virgin",
            )
        ],
        arms=[
            arm("a", "Champion (Jan–Aug)", "live", 78_800, 0.7605, rng),
            arm("b", "Challenger (through Oct)", "canary", 5_512, 0.7702, rng),
        ],
        consistency=Consistency(
            84_312,
            98,
            84_311 if failing else 84_312,
            [("plane:dep_delay_mean_7d", 1)] if failing else [],
        ),
        days=days(rng),
        incidents=[
            IncidentView(
                date(2013, 12, 9),
                "predictions and calibration drifted",
                [
                    "mean prediction 0.171 → 0.293 against the trailing 28 days (z 7.1)",
                    "late share 0.50 where 0.31 was predicted (z 12.4)",
                ],
                [
                    MovedFeature("weather:visibility", 0.71, 0.2, "9.4 → 5.1"),
                    MovedFeature("origin:dep_delay_mean_6h", 0.58, 0.2, "8.1 → 24.6"),
                    MovedFeature("carrier:arr_delay_mean_24h", 0.44, 0.2, "1.9 → 18.0"),
                    MovedFeature("weather:precipitation", 0.31, 0.2, "0.00 → 0.02"),
                ],
            )
        ],
        skew=SkewView(
            date(2013, 12, 31),
            126,
            3,
            [("weather:temp", 1.912, 0.25), ("weather:dewp", 0.874, 0.25)],
        ),
        latencies=[
            LatencySeries("Predict", "all decisions of one minute, over gRPC", latency),
            LatencySeries(
                "Push, then Predict", "one decision minute, with its barrier", latency + 900_000
            ),
        ],
        throughput=Throughput(84_312, 32_044, 252_310, 84_312, 96.4),
        governance=[
            GovernanceEvent(
                "2026-11-24 02:14",
                "ada",
                "register",
                "champion 3f9c3f9c",
                "trained January to August",
            ),
            GovernanceEvent(
                "2026-11-24 02:14", "ada", "submit", "champion 3f9c3f9c", "beats both baselines"
            ),
            GovernanceEvent(
                "2026-11-24 02:14",
                "ada",
                "approve",
                "champion 3f9c3f9c",
                "an author cannot approve their own version",
                True,
            ),
            GovernanceEvent(
                "2026-11-24 02:14",
                "grace",
                "approve",
                "champion 3f9c3f9c",
                "parity and slices looked at",
            ),
            GovernanceEvent(
                "2026-11-24 02:15", "grace", "release", "champion 3f9c3f9c 100 %", "first release"
            ),
            GovernanceEvent(
                "2026-11-24 02:16",
                "grace",
                "release",
                "champion 90 %, challenger 10 %",
                "canary from 1 November",
            ),
        ],
        replayed="01419b2e-5c80-7000-8001-9d2f4b6a1c3e",
        addresses={"gRPC": "127.0.0.1:8001", "REST": "127.0.0.1:8000"} if keep else {},
        keep=keep,
        checks=checks,
        timings=[
            Timing(s, t)
            for s, t in (
                ("Start the system", 3.1),
                ("Read the flights", 4.2),
                ("Train and tune", 41.8),
                ("Review and release", 1.9),
                ("Warm the history", 8.4),
                ("Replay three months", 96.4),
                ("Monitor and compare", 14.7),
            )
        ],
    )
