"""Which 8-bit model is chosen: variants, plans and mixtures, measured on the tune samples."""
