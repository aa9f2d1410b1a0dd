"""Pictures with objects in them: COCO as released, and scenes in the same format that are composed here."""
