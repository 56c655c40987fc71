"""What tests of reports share: reading tables, and curves as records have them."""

import csv


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def noted(steps, values):
    return {"steps": list(steps), "values": list(values)}
