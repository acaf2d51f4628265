"""Les tests : ``unit`` (purs), ``integration`` et ``faults`` (vrais serveurs), ``docs`` (le README dit vrai)."""
