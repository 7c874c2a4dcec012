"""What is measured of texts and of profiles, and what a reading is worth."""
