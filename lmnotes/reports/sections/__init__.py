"Parts of the report beside verdicts, tables and charts: notes, files, commands and costs"
