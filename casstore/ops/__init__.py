"""Operations on whole stores: plan, then execute."""
