"""The evaluation set: chosen before anything is learned, frozen by its digest."""
