"""The pure core: model, objective, training, measurement and pictures. Knows no DVC, no MLflow, no params.yaml."""
