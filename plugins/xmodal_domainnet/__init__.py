"""The four domains of miniDomainNet as tasks."""
