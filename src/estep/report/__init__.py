"""Reports: tables, figures and one page from the folder of a run or a study."""
