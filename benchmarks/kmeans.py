"""1-D k-means against scikit-learn's KMeans and the exact kmeans1d, alternating in one process.

    python benchmarks/kmeans.py [--repeats 5]
    python benchmarks/kmeans.py --quick

Data: what pruning leaves of a layer, float32 values of a Gaussian or Laplace distribution whose
smallest 89 % are gone and whose gap retraining has blurred. scikit-learn starts from the same
linear centroids, its other settings are the defaults. kmeans1d finds the exact optimum; its rows
are skipped where it is not installed. Ratio: median seconds of the rival over ours. --quick: a
hundredth of the values, once; no measure.
"""

import argparse
import os
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from net.quantization import INITS, kmeans_1d


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--quick", action="store_true", help="few values, once: seconds")
    args = parser.parse_args(argv)
    repeats, part = (1, 100) if args.quick else (args.repeats, 1)
    print(machine())
    print("values     n         k    ours s  rival s            ratio   inertia: ours / rival's")
    kmeans_1d(pruned_weights("gauss", 1000), 4)  # warm-up
    values = pruned_weights("gauss", 3_400_000 // part)
    compare("gauss", values, 32, "scikit-learn", scikit_learn, repeats)
    try:
        import kmeans1d  # noqa: F401
    except ImportError:
        print("kmeans1d is not installed: its rows are skipped")
        return 0
    for kind in ("gauss", "laplace"):
        values = pruned_weights(kind, 300_000 // part)
        for k in (32, 256):
            exact = compare(kind, values, k, "kmeans1d", exact_k_means, repeats)
            parts = [
                f"{init} {inertia(values, *kmeans_1d(values, k, init)) / exact:.5f}"
                for init in INITS
            ]
            print(f"           inertia by start, over the optimum: {', '.join(parts)}")
    return 0


def pruned_weights(kind, n, density=0.11):
    rng = np.random.default_rng(0)
    draw = {"gauss": rng.standard_normal, "laplace": lambda size: rng.laplace(size=size)}[kind]
    weights = draw(int(n / density) + 1)
    magnitude = np.abs(weights)
    kept = weights[magnitude > np.partition(magnitude, -n - 1)[-n - 1]]
    return (0.02 * kept + 0.002 * rng.standard_normal(n)).astype(np.float32)


def scikit_learn(values, k):
    from sklearn.cluster import KMeans

    start = np.linspace(values.min(), values.max(), k)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge shows in the inertia
        model = KMeans(k, init=start, n_init=1).fit(values[:, None])
    return model.cluster_centers_[:, 0], model.labels_


def exact_k_means(values, k):
    import kmeans1d

    result = kmeans1d.cluster(values, k)
    return np.array(result.centroids), np.array(result.clusters)


def compare(kind, values, k, name, rival, repeats):
    """Print one row, ours and the rival's runs alternating; return the rival's inertia."""
    seconds = {kmeans_1d: [], rival: []}
    results = {}
    for _ in range(repeats):
        for cluster, times in seconds.items():
            begin = time.perf_counter()
            results[cluster] = cluster(values, k)
            times.append(time.perf_counter() - begin)
    ours, theirs = (statistics.median(times) for times in seconds.values())
    best, other = (inertia(values, *results[cluster]) for cluster in seconds)
    print(
        f"{kind:9}{values.size:>9,}{k:6}{ours:10.3f}  {theirs:7.3f} {name:12}{theirs / ours:8.1f} x"
        f"  {best:.6g} / {other:.6g} = {best / other:.5f}",
        flush=True,
    )
    return other


def inertia(values, centroids, labels):
    return float(np.sum((values.astype(np.float64) - centroids[labels]) ** 2))


def machine():
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            model = next(line.split(":")[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        pass
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{model}, {os.cpu_count()} CPUs{load}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
