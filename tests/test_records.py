"""Records go through JSON unchanged."""

import json

from inheritune_hf.records import EXIT_STATUS, Lineage, Match, Round, RunRecord

ROUND = Round(1, (0, 1), 0, 10, 640, 1e9, 1.5, 3.1, 3.0, Match(False, False, 0.1, None, None, 4, "few"))
LINEAGE = Lineage("gpt2", None, 12, (0, 1), {"torch": "2"})


def test_run_record_goes_through_json():
    """What is rebuilt from JSON equals what was written."""
    record = RunRecord({"keep_layers": 2}, LINEAGE, (ROUND,), "no_more_layers", 3.0)
    assert RunRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert ROUND.layers == 2


def test_every_outcome_has_its_own_status():
    """Exit statuses tell outcomes apart."""
    assert EXIT_STATUS == {"matched": 0, "no_more_layers": 3, "budget_exhausted": 4, "interrupted": 75}
