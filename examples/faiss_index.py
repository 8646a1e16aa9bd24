"""An index of faiss over features that an encoder has written: exact, and an approximate one with its recall.

    matrix-ssl embed runs/photos --data photos --out features.npz
    python examples/faiss_index.py features.npz [--query 0] [--k 5] [--out features.faiss]

Needs faiss-cpu, the extra search. Prints the images most similar to one of the dataset by their cosine similarity, and
the share of the exact neighbours that the graph of HNSW finds; writes that index to a file, which
``faiss.read_index`` opens.
"""

import argparse

import faiss
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("features", help="The .npz file that matrix-ssl embed wrote.")
parser.add_argument("--query", type=int, default=0, help="The number of an image.")
parser.add_argument("--k", type=int, default=5)
parser.add_argument("--out", default="features.faiss")
options = parser.parse_args()

with np.load(options.features) as file:
    features, paths = np.ascontiguousarray(file["features"], dtype=np.float32), file["where"]
faiss.normalize_L2(features)  # inner products of rows of length one are cosine similarities

exact = faiss.IndexFlatIP(features.shape[1])
exact.add(features)
similarities, rows = exact.search(features[options.query : options.query + 1], options.k + 1)
print(f"query: {paths[options.query]}")
for similarity, row in zip(similarities[0], rows[0], strict=True):
    if row != options.query:
        print(f"{similarity:.3f} {paths[row]}")

graph = faiss.IndexHNSWFlat(features.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
graph.hnsw.efConstruction, graph.hnsw.efSearch = 200, 64
graph.add(features)
asked = features[:1000]
exactly, nearly = (index.search(asked, options.k)[1] for index in (exact, graph))
print(f"recall: {np.mean([np.isin(a, b).mean() for a, b in zip(exactly, nearly, strict=True)]):.3f}")
faiss.write_index(graph, options.out)
print(f"written: {options.out}")
