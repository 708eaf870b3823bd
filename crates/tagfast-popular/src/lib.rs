//! Popular tags: windows, counts, displays and typeahead, kept by the owner of a stripe.
