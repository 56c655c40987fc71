"""Planning: from scores of imagined action sequences to the action to take."""
