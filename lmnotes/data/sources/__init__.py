"Where rows come from: files, folders in hub layout, and the hub"
