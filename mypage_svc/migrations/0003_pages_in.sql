-- Where the pages are: postgres (the table mypages), or the name of a NATS bucket. One row.
CREATE TABLE pages_in (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    place text NOT NULL
);

INSERT INTO pages_in (place) VALUES ('postgres');
