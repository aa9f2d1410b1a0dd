"""Pictures with objects in them: COCO as it is released, and scenes of the same form that are composed here."""
