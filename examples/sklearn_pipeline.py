"""A classifier of scikit-learn on features that an encoder has written.

    matrix-ssl embed runs/photos --data photos --out features.npz
    python examples/sklearn_pipeline.py features.npz [--folds 5]

Scales the features, reduces them to their first principal components, fits logistic regression and prints the accuracy
on held-out folds, beside that of always saying the most frequent class; then the images that are most surely
misclassified. Images need labels: a folder for every class.
"""

import argparse

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

parser = argparse.ArgumentParser()
parser.add_argument("features", help="The .npz file that matrix-ssl embed wrote.")
parser.add_argument("--folds", type=int, default=5)
options = parser.parse_args()

with np.load(options.features) as file:
    features, labels = file["features"], file["labels"]
    classes, paths = file["classes"], file["where"]

components = min(64, *features.shape, len(features) * (options.folds - 1) // options.folds)
model = make_pipeline(StandardScaler(), PCA(components, random_state=0), LogisticRegression(C=0.1, max_iter=2000))
folds = StratifiedKFold(options.folds, shuffle=True, random_state=0)
probabilities = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
predicted = probabilities.argmax(axis=1)

print(f"accuracy: {(predicted == labels).mean():.3f}")
print(f"most frequent class: {np.bincount(labels).max() / len(labels):.3f}")
wrong = np.flatnonzero(predicted != labels)
for row in wrong[np.argsort(-probabilities[wrong, predicted[wrong]])][:5]:
    print(f"{paths[row]}: {classes[labels[row]]}, predicted {classes[predicted[row]]}")
