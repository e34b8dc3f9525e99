-- Answers to repeated requests are forgotten by their age.
CREATE INDEX transactions_by_time ON transactions (created_at);
