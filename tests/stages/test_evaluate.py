def test_x(finished):
    pass
