"""diagnosis.json -> one page with figures: where safety is lost, by layer, modality and exit."""
