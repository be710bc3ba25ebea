"""Operations on whole stores, each in one file: plan, then execute."""
