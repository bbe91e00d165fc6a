"""`covey demo`: the main job in front of the user, through the same commands and API that users have."""
